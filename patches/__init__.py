"""The codemods that bring this project's abilities to text-generation-webui; see README.md."""
