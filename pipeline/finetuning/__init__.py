"""Fine-tuning: train the last layers of a base together with a head."""
