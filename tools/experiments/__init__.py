"""Experiments with Plug-and-Play's settings on the bundled model: python -m tools.experiments NAME [options]."""
