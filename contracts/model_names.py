"""How a recipe names a model that a study trains first."""

TRAINED_PREFIX = "trained:"
"""``trained:NAME`` stands for the folder of the study's model NAME; it is put in when it exists."""
