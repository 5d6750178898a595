"""What patched files of text-generation-webui import: one module per ability.

Standard library only at import, Python 3.10: this package joins an environment of any year with
`pip install --no-deps tgwui-k8s`. What upstream has (its `shared` module, its logger, uvicorn,
torch) is handed over by the hook or imported where it is used.
"""
