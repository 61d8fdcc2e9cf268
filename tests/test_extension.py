"""The worked example of the README, carried out: a new halting rule, from notebook to verdict."""
import json

import yaml
from conftest import ROOT, commit, run

from zeromodel.study.experiments import compose

README = (ROOT / "README.md").read_text()


def test_a_new_halting_rule(copy):
    name, rule, experiment = '"convergence", "steady"', 'if kind == "steady": return torch.zeros_like(p), change <= self.config.convergence_tolerance', "halt_steady: {model: {lru_halting: steady, lru_global_halt: false, lru_convergence_tolerance: 0.3}}"
    for line in (name, rule, experiment): assert line in README
    for notebook, old, new in (("parts", '"convergence"\n', f"{name}\n"), ("halting", '        if kind == "convergence": enough', f'        {rule}\n        if kind == "convergence": enough')):
        path = copy / f"nbs/model/{notebook}.ipynb"
        text = path.read_text()
        assert (quoted := json.dumps(old)[1:-1]) in text
        path.write_text(text.replace(quoted, json.dumps(new)[1:-1].replace("\\n        if", '\\n",\n    "        if'), 1))
    run("nbdev_export", cwd=copy)
    experiments = copy / "studies/experiments.yaml"
    experiments.write_text(experiments.read_text() + f"  {experiment}\n")
    params = yaml.safe_load(compose("micro", copy / "studies")) | {"run": ["mla_lru_adaptive", "halt_steady"], "contrast": {"control": "mla_lru_adaptive", "treatment": "halt_steady", "smallest_effect": .05}}
    (copy / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    stages = yaml.safe_load((copy / "dvc.yaml").read_text())
    stages["stages"]["analysis"]["matrix"]["notebook"] = ["halting"]
    (copy / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    commit(copy, "a new halting rule")
    done = run("zeromodel", "study", "run", cwd=copy)
    assert "Verdict: halt_steady better than mla_lru_adaptive" in done.stdout
    stops = {row[8] for row in json.loads((copy / "reports/micro/evaluation/halt_steady.json").read_text())["rows"] if row[1] == 0}
    assert stops and stops <= {1, 2, 3}                                     # the column `iterations`, where nothing was forced
