"""Everything a user can set, declared once. Command line, apps, presets and the guide are made from here."""

from acestep.settings.adapter import AdapterSettings
from acestep.settings.base import Settings, fields_of, knob, load_settings, save_settings
from acestep.settings.caption import CaptionSettings
from acestep.settings.dataset import DatasetSettings
from acestep.settings.generate import GenerateSettings
from acestep.settings.preprocess import PreprocessSettings
from acestep.settings.preview import PreviewSettings
from acestep.settings.train import (
    HardwareSettings,
    ObjectiveSettings,
    OptimizerSettings,
    RunSettings,
    TrainSettings,
    ValidationSettings,
    WindowSettings,
)

__all__ = [
    "AdapterSettings",
    "CaptionSettings",
    "DatasetSettings",
    "GenerateSettings",
    "HardwareSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "PreprocessSettings",
    "PreviewSettings",
    "RunSettings",
    "Settings",
    "TrainSettings",
    "ValidationSettings",
    "WindowSettings",
    "fields_of",
    "knob",
    "load_settings",
    "save_settings",
]
