"""Labelled speech: synthetic recordings whose words, speaker, language and damage are known."""
