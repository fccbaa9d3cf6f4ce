"""The k4-runner command: composition, supervision, live view and simulated venues."""
