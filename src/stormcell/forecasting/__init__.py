"""Train, forecast, verify: the application as functions."""
