"""What is done with forecasts: baselines beside them, scores with intervals, calibration, backtests."""
