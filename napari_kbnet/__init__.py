"""The napari plugin: a thin shell over `kbnet_plugin.Restorer`, which computes everything."""
