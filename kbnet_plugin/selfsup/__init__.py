"""Models trained on noisy images alone: Noise2Void and Noise2Noise."""
