"""Utilities: communication, event storage, logging, files, random state."""
