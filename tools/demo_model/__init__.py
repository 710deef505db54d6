"""The recipe of the small ACE-Step model that comes with the project; `tools/train_demo_model.py` runs it."""
