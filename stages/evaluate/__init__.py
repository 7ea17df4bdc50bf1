"""Evaluations: what a trained reference model is measured by."""
