"""Reads run folders and says what they show: no torch here, and nothing of training."""
