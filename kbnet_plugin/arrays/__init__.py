"""What an array means: axes, intensity range, noise, tiles. No torch here."""
