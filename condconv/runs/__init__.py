"""Runs: their settings, their folder, the networks that they train, and what a finished one leaves behind.

Nothing is imported here: `condconv.runs.config` alone is enough to read a command line, and answers at once.
"""
