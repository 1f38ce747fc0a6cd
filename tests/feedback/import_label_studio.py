"""Run in an environment with Label Studio: makes a project, imports a file of tasks into it, writes its export.

python import_label_studio.py CONFIGURATION.xml TASKS.json EXPORT.json
"""

import json
import os
import sys
from pathlib import Path

configuration, tasks, exported = map(Path, sys.argv[1:])
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "label_studio.core.settings.label_studio")
os.environ["LABEL_STUDIO_BASE_DATA_DIR"] = str(exported.parent / "data")
os.environ |= {
    "COLLECT_ANALYTICS": "0",
    "LATEST_VERSION_CHECK": "0",
    "SENTRY_DSN": "",
}  # it tells nobody that it runs

import label_studio  # noqa: E402

sys.path.insert(0, str(Path(label_studio.__file__).parent))
import django  # noqa: E402

django.setup()
from django.core.management import call_command  # noqa: E402

call_command("migrate", interactive=False, verbosity=0)
from organizations.models import Organization  # noqa: E402
from rest_framework.test import APIClient  # noqa: E402
from users.models import User  # noqa: E402

user = User.objects.create_user("owner@example.com", "a-password-of-the-test")
user.active_organization = Organization.create_organization(created_by=user, title="test")
user.save()
client = APIClient()
client.force_authenticate(user)


def ask(method, path, content=None):
    answer = getattr(client, method)(path, content, format="json", HTTP_HOST="localhost")
    body = b"".join(answer.streaming_content) if answer.streaming else answer.content
    if answer.status_code >= 300:
        sys.exit(f"{path}: {answer.status_code} {body.decode()[:2000]}")
    return json.loads(body)


project = ask("post", "/api/projects", {"title": "klimb", "label_config": configuration.read_text()})["id"]
ask("post", f"/api/projects/{project}/import?return_task_ids=1", json.loads(tasks.read_text()))
exported.write_text(json.dumps(ask("get", f"/api/projects/{project}/export?exportType=JSON")))
