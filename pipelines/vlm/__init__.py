"""Vision-language models that answer in text, as policies: one action is one token."""
