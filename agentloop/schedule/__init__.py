"""When cycles run, without a person: `Scheduler` over a calendar, one at a time per home.

`calendar.Calendar` says which times are due, `triggers.Triggers` what else starts a cycle,
`slots.Slots` what the log knows of them, `run.Scheduler` does the work under a lease, `install`
hands it to systemd or cron. There is no broker: the log is all that two schedulers share.
"""

from agentloop.schedule.calendar import Calendar, Cron, Every, calendar_of, interval
from agentloop.schedule.clock import Clock, SystemClock
from agentloop.schedule.run import Outcome, Scheduler
from agentloop.schedule.slots import Slot, slot_name
from agentloop.schedule.triggers import Triggers

__all__ = [
    "Calendar",
    "Clock",
    "Cron",
    "Every",
    "Outcome",
    "Scheduler",
    "Slot",
    "SystemClock",
    "Triggers",
    "calendar_of",
    "interval",
    "slot_name",
]
