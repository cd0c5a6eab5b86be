"""The price features as loops over rows, from their definitions: row t from rows up to t alone.

With p = log close, r_t = p_t − p_{t−1} and σ_w the root mean square of the last w returns (at least a tenth of that of
all returns so far):

    return_k      (p_t − p_{t−k}) / (σ_60 √k)             volatility_k   log σ_k
    rsi           (up − down) / (up + down), averages of rises and falls with weight 1/14 (Wilder 1978)
    macd          (EMA_12 − EMA_26 of p) / σ_20           drawdown       (p_t − highest p of 250 rows) / σ_60
    gap, body, range, close_location                      from open, high, low and close of one row
    parkinson     log √(mean of 20 log²(high/low) / (4 log 2)) (Parkinson 1980)
    volume        log(1 + volume): its z-score over 20 rows, and its change
"""

import math


def features(name, close, opening=None, high=None, low=None, volume=None):
    """One feature as a list; None where its window is not full."""
    n = len(close)
    p = [math.log(c) for c in close]
    r = [0.0] + [p[t] - p[t - 1] for t in range(1, n)]

    def sigma(t, w):
        if t < w:
            return None
        all_so_far = math.sqrt(sum(x * x for x in r[1 : t + 1]) / t)
        return max(math.sqrt(sum(x * x for x in r[t - w + 1 : t + 1]) / w), 0.1 * all_so_far)

    def ema(values, alpha):
        out = [values[0]]
        for v in values[1:]:
            out.append(alpha * v + (1 - alpha) * out[-1])
        return out

    up, down = (ema([max(s * x, 0.0) for x in r], 1 / 14) for s in (1, -1))
    fast, slow = ema(p, 2 / 13), ema(p, 2 / 27)
    v = [math.log1p(x) for x in volume]

    def at(t):
        kind, _, k = name.rpartition("_")
        if kind == "return":
            return (p[t] - p[t - int(k)]) / (sigma(t, 60) * math.sqrt(int(k)))
        if kind == "volatility":
            return math.log(sigma(t, int(k)))
        if name == "rsi":
            return (up[t] - down[t]) / (up[t] + down[t])
        if name == "macd":
            return (fast[t] - slow[t]) / sigma(t, 20)
        if name == "drawdown":
            return (p[t] - max(p[max(0, t - 249) : t + 1])) / sigma(t, 60)
        if name == "gap":
            return (math.log(opening[t]) - p[t - 1]) / sigma(t, 60)
        if name == "body":
            return (p[t] - math.log(opening[t])) / sigma(t, 60)
        if name == "range":
            return math.log(high[t] / low[t]) / sigma(t, 60)
        if name == "close_location":
            h, lo = math.log(high[t]), math.log(low[t])
            return (2 * p[t] - h - lo) / (h - lo)
        if name == "parkinson":
            square = sum(math.log(high[s] / low[s]) ** 2 for s in range(t - 19, t + 1)) / 20 / (4 * math.log(2))
            return math.log(max(math.sqrt(square), 0.1 * sigma(t, 60)))
        window = v[t - 19 : t + 1]
        mean = sum(window) / 20
        if name == "volume_z":
            return (v[t] - mean) / max(math.sqrt(sum((x - mean) ** 2 for x in window) / 20), 1e-2)
        return v[t] - v[t - 1]

    return [None if t < 60 else at(t) for t in range(n)]
