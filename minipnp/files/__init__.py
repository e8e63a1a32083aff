"""What lies on a disk or a hub: weights and their settings, pictures, guidance files."""
