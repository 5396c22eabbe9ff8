"""Networks in torch, built without weights: what tracing and calibration have in common."""
