"""The model.

backbone, encoder, attention    a pretrained encoder, run with prompts
prompts, heads, mtop            what a task has of its own, and the model of all tasks
fingerprints, bundle            what a label depends on; the model as files (bundle_files: without torch)
"""
