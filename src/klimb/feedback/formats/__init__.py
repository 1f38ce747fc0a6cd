"""Files of feedback: TRL's formats, Anthropic's transcripts, data sets of the hub, Label Studio and Argilla.

One module for each source, and `reading` with the table that tries them by their columns.
"""

from klimb.feedback.formats.feedback import Feedback
from klimb.feedback.formats.reading import read_feedback
from klimb.feedback.formats.texts import ASSISTANT, HUMAN, SYSTEM

__all__ = ["ASSISTANT", "HUMAN", "SYSTEM", "Feedback", "read_feedback"]
