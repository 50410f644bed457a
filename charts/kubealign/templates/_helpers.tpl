{{/* Labels of every object. Without the chart's version, which would make each upgrade touch objects that did not change. */}}
{{- define "kubealign.labels" -}}
app.kubernetes.io/name: kubealign
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: kubealign
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels of pods, by which the network policies know them. No app.kubernetes.io/name: KubeRay's head service selects its own.
     Takes the component. */}}
{{- define "kubealign.podLabels" -}}
app.kubernetes.io/part-of: kubealign
kubealign.dev/component: {{ . }}
{{- end }}

{{/* Pod Security `restricted`, for the pod and for a container. */}}
{{- define "kubealign.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "kubealign.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end }}

{{- define "kubealign.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The claim that holds artifacts; empty with object storage. */}}
{{- define "kubealign.claim" -}}
{{- if not .Values.storage.s3.url }}{{ .Values.storage.existingClaim | default "kubealign-artifacts" }}{{ end }}
{{- end }}

{{- define "kubealign.storageUrl" -}}
{{ .Values.storage.s3.url | default .Values.storage.mountPath }}
{{- end }}

{{/* What a pod needs to reach the artifacts: a mounted claim, or a secret's keys as environment. */}}
{{- define "kubealign.storageVolume" -}}
{{- with include "kubealign.claim" . }}
- name: artifacts
  persistentVolumeClaim: {claimName: {{ . }}}
{{- end }}
{{- end }}

{{- define "kubealign.storageMount" -}}
{{- if include "kubealign.claim" . }}
- {name: artifacts, mountPath: {{ .Values.storage.mountPath }}}
{{- end }}
{{- end }}

{{- define "kubealign.storageSecret" -}}
{{- if and .Values.storage.s3.url .Values.storage.s3.existingSecret }}
- secretRef: {name: {{ .Values.storage.s3.existingSecret }}}
{{- end }}
{{- end }}

{{/* Where Ray's token lies, for a client of the RayCluster's job API. */}}
{{- define "kubealign.tokenEnv" -}}
{{- if .Values.auth.token }}
- {name: RAY_AUTH_MODE, value: token}
- name: RAY_AUTH_TOKEN
  valueFrom: {secretKeyRef: {name: kubealign, key: auth_token}}
{{- end }}
{{- end }}

{{/* Environment variables that no pod may be given, as in alignment/config/environment.py: [whole name, what it does]. */}}
{{- define "kubealign.refusedEnv" -}}
- ['RAY_.*AUTH.*', "decides whether Ray asks for its token, and for which"]
- ['RAY_USE_TLS|RAY_TLS_.*', "decides how Ray's processes know each other"]
- ['RAY_ADDRESS|(FQ_)?RAY_IP|RAY_PORT|(RAY_)?REDIS_.*|RAY_GCS_STORAGE.*', "ties a stage to another Ray cluster"]
- ['RAY_DEBUG(_POST_MORTEM|GER_.*)?', "opens a port that asks for no token"]
- ['RAY_.*(_HOOK|_PLUGINS?|PRELOAD|JEMALLOC).*', "makes Ray run code that is not the image's"]
- ['LD_.*|GCONV_PATH|OPENSSL_(CONF|MODULES|ENGINES)|BASH_ENV|PATH', "makes programs run code that is not the image's"]
- ['PYTHON(PATH|HOME|STARTUP|USERBASE|EXECUTABLE|PLATLIBDIR|PYCACHEPREFIX|BREAKPOINT|INSPECT)', "makes Python run code that is not the image's"]
- ['PYTHONOPTIMIZE', "takes checks out of the code that runs"]
- ['PYTHONHTTPSVERIFY|SSLKEYLOGFILE|.*(DISABLE_SSL|SSL_NO_VERIFY).*', "lays encrypted connections open"]
- ['.*TRUST_REMOTE_CODE.*|TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', "lets models and files bring code along"]
- ['HOME|TMPDIR|TMP|TEMP|KUBEALIGN_.*', "is set by the manifests"]
{{- end }}
