"""What the server of a crew's processes imports: it ends with the process that started it, and they with it."""

from benchmarks.gpu.crew import end_with_parent

end_with_parent()
