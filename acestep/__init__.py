"""Teach the ACE-Step 1.5 music model a style or a voice: label, preprocess, train, listen, export."""

__version__ = "0.1.0"
