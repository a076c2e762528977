"""The napari plugin: a thin shell over `kbnet_plugin`, which computes everything."""
