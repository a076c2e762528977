"""Pictures and stacks, read and written with their metadata. No torch here."""
