"""A LangGraph agent over langchain-openai, run as a program of its own."""

import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


model = ChatOpenAI(model="gpt-4o-mini").bind_tools([add])


def assistant(state: MessagesState) -> dict:
    """One turn of the model."""
    return {"messages": [model.invoke(state["messages"])]}


graph = (
    StateGraph(MessagesState)
    .add_node("assistant", assistant)
    .add_node("tools", ToolNode([add]))
    .add_edge(START, "assistant")
    .add_conditional_edges("assistant", tools_condition)
    .add_edge("tools", "assistant")
    .compile()
)
print(graph.invoke({"messages": [("user", sys.stdin.read())]})["messages"][-1].content)
