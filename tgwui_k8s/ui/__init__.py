"""The web page on port 7860: Gradio draws it, the browser's own script talks to the API.

It runs in a process of its own (`process`, kept alive by `supervisor` in the API process), knows
the engine only through the public HTTP API, and keeps nothing: chats and parameters live in the
browser. Gradio is imported in that process alone.
"""
