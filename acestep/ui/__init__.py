"""The two apps in the browser. The only room that imports gradio; it holds no logic a command-line user would miss."""
