"""What each layer type does to channels: one short function a type."""
