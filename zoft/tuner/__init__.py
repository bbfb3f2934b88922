"""Tuners: learned perturbation scales for a base model."""

from zoft.tuner.artifact import Tuner
from zoft.tuner.bound import BoundTuner
from zoft.tuner.config import Recommended, TunerConfig
from zoft.tuner.normalization import NormalizationConfig
from zoft.tuner.pertnn import NetworkConfig, PertNN

__all__ = [
    "BoundTuner",
    "NetworkConfig",
    "NormalizationConfig",
    "PertNN",
    "Recommended",
    "Tuner",
    "TunerConfig",
]
