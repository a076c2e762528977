"""Find models by name: those that ship with the package and the user's own."""

from .locations import DEFAULT, DEFAULT_GRAY, DEFAULT_MICRO, DEFAULT_PHOTO, FOLDER_VARIABLE, folder
from .registry import Model, get_model, list_models, register_model

__all__ = [
    "DEFAULT",
    "DEFAULT_GRAY",
    "DEFAULT_MICRO",
    "DEFAULT_PHOTO",
    "FOLDER_VARIABLE",
    "Model",
    "folder",
    "get_model",
    "list_models",
    "register_model",
]
