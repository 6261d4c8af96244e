"""A script as a user of OpenAI's Python client writes one; it knows of nothing else."""

import sys

from openai import OpenAI

client = OpenAI()
messages = [{"role": "user", "content": sys.stdin.read()}]
first = client.chat.completions.create(model="gpt-4o-mini", messages=messages)
messages.append(first.choices[0].message)
messages.append({"role": "user", "content": "Are you sure?"})
text = ""
for chunk in client.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True):
    text += chunk.choices[0].delta.content or ""
print(text)
