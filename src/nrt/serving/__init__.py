"""Export of a trained model: the folder, its model card, and a plugin with which vLLM serves it.

`vllm_reasoning.py` is copied into exported folders; nrt itself never imports it.
"""
