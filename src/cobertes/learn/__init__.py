"""LEARN: data feeding, the U-Net, losses, the training loop, model files."""
