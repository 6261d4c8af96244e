"""The recording endpoint: any program that speaks OpenAI's chat format is an agent of the loop."""
