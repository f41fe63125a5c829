"""Reconstruction: the layers behind removed channels make up for them."""
