"Run one recipe again: python -m fuzzing '[\"spectra\", \"spoil\", \"hdf5\", [17, 4], \"\"]'"
import json
import sys
import tempfile
from pathlib import Path

from .worker import Worker

target, *recipe = json.loads(sys.argv[1])
worker = Worker(tempfile.mkdtemp(prefix='fuzz-'))
for k, v in worker.run(target, recipe).items(): print(f'{k}: {v}')
worker.stop()
print(f'files: {worker.folder}' if worker.failures else 'nothing wrong')
