"""From generated text to what a chat answer is made of: text, reasoning, tool calls."""
