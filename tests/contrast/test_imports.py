"""The method stands on torch alone."""

import subprocess
import sys


def test_importing_it_loads_torch_and_nothing_else() -> None:
    """Whatever `import torch` loads by itself is torch's; of the project there is the method alone."""
    script = (
        "import sys, torch; before = {name.partition('.')[0] for name in sys.modules}; import hicl_d2.contrast; "
        "after = {name.partition('.')[0] for name in sys.modules}; own = [n for n in sys.modules if n.startswith('hicl_d2.')]; "
        "print(sorted(after - before - set(sys.stdlib_module_names)), "
        "[n for n in own if not n.startswith(('hicl_d2.contrast', 'hicl_d2.version'))])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['hicl_d2'] []"
