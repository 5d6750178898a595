"""One file per loader, found through the entry-point group `tgwui_k8s.loaders`.

To write one, provide a class with the shape of `tgwui_k8s.contract.Loader` and register it:

    [project.entry-points."tgwui_k8s.loaders"]
    "MyLoader" = "my_package.my_module:MyLoader"

Heavy imports stand at the top of the loader's own file: it is imported only when it is chosen.
"""
