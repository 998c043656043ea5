"""Sampling: the engine protocol and its implementations."""
