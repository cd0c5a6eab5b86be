"""Radio signals: frames of complex samples in, the modulation of each frame (or every symbol in it) out.

    y_n = e^{i(φ + 2πfn)} (h ∗ s)_n + noise,  s points of a constellation of unit mean power
    bound: the likelihood of a modulation is Π_n mean_s exp(−|y_n − s|² / σ²); none does better than its largest

Frames are made on the fly, every batch a function of (seed, step), or read from recordings.

Files, in reading order:

    modulations.py   how bits become points of the plane; kinds.py: those and all other kinds of signals
    config.py        SignalDataConfig: the options, and what each scenario fills in
    waveforms.py     every kind as samples; channel.py: what happens to it; blind.py: both drawn frame by frame
    synchronised.py  the scenarios whose symbol rate is known
    generator.py     SignalGenerator; GeneratedSignals, the batches
    recordings/      files that receivers write, read in blocks, and folders of them to train on; files.py: one at once
    bound.py         maximum_likelihood_bound: the accuracy that nobody can exceed; unlocked.py: phase, timing unknown
    receiver.py      band, symbol rate and symbols of a frame, without weights; features.py: what they come to
    model.py         SignalTransformer: a stem, blocks, a head (layers.py); predict; condition.py tells it the SNR
    data.py          SignalData, the frames and what a model of them takes; task.py: Signal, the kind; SignalTask
    calibration.py   probabilities that mean what they say, and unknown; familiar.py: what the training looked like
    finish.py        what follows training, with figures.py, charts.py and the baseline, cumulant_classifier.py
    report.py        what a comparison adds: accuracy over SNR beside the bound
    frontend/        detection, resampling, votes, annotations, waterfall: between a recording and the model
    predict.py       `blockyard classify`: session.py, frames.py, bursts.py; answering.py: batches by threads; levels.py

Complex blocks (blockyard.complex) answer alike for every phase; at a coherent receiver real ones do better.

The generator, files, the bound and figures: docs/signals.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tasks.signal.bound import Bound as Bound
    from blockyard.tasks.signal.bound import maximum_likelihood_bound as maximum_likelihood_bound
    from blockyard.tasks.signal.calibration import Calibration as Calibration
    from blockyard.tasks.signal.config import SignalDataConfig as SignalDataConfig
    from blockyard.tasks.signal.cumulant_classifier import CumulantClassifier as CumulantClassifier
    from blockyard.tasks.signal.familiar import Familiar as Familiar
    from blockyard.tasks.signal.files import frames_of as frames_of
    from blockyard.tasks.signal.files import read_iq as read_iq
    from blockyard.tasks.signal.finish import finish_run as finish_run
    from blockyard.tasks.signal.generator import Frames as Frames
    from blockyard.tasks.signal.generator import GeneratedSignals as GeneratedSignals
    from blockyard.tasks.signal.generator import SignalGenerator as SignalGenerator
    from blockyard.tasks.signal.kinds import KINDS as KINDS
    from blockyard.tasks.signal.model import SignalConfig as SignalConfig
    from blockyard.tasks.signal.model import SignalOutput as SignalOutput
    from blockyard.tasks.signal.model import SignalTransformer as SignalTransformer
    from blockyard.tasks.signal.model import predict as predict
    from blockyard.tasks.signal.modulations import MODULATIONS as MODULATIONS
    from blockyard.tasks.signal.modulations import constellation as constellation
    from blockyard.tasks.signal.modulations import parse_modulations as parse_modulations
    from blockyard.tasks.signal.recordings.labelled import RecordedSignals as RecordedSignals
    from blockyard.tasks.signal.recordings.opening import RecordingOptions as RecordingOptions
    from blockyard.tasks.signal.recordings.opening import open_recordings as open_recordings
    from blockyard.tasks.signal.recordings.recording import Recording as Recording
    from blockyard.tasks.signal.task import Signal as Signal
    from blockyard.tasks.signal.task import SignalTask as SignalTask
    from blockyard.tasks.signal.unlocked import average_likelihood_bound as average_likelihood_bound
else:
    __all__ = exports(
        __name__,
        {
            "bound": "Bound maximum_likelihood_bound",
            "calibration": "Calibration",
            "config": "SignalDataConfig",
            "cumulant_classifier": "CumulantClassifier",
            "familiar": "Familiar",
            "files": "frames_of read_iq",
            "finish": "finish_run",
            "generator": "Frames GeneratedSignals SignalGenerator",
            "kinds": "KINDS",
            "model": "SignalConfig SignalOutput SignalTransformer predict",
            "modulations": "MODULATIONS constellation parse_modulations",
            "recordings.labelled": "RecordedSignals",
            "recordings.opening": "RecordingOptions open_recordings",
            "recordings.recording": "Recording",
            "task": "Signal SignalTask",
            "unlocked": "average_likelihood_bound",
        },
    )
