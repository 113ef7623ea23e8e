"""The service: deliveries become batches, models are accepted, and every step can be shown."""
