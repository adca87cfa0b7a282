"""Networks, losses, metrics, data and training for medical images."""
