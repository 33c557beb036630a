"""Experiments by hand: single trainings, sweeps over a grid, and all that was ever trained, listed and traced."""
