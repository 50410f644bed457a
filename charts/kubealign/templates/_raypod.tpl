{{/* Pod template of the head or of a worker group; the only place that says what a Ray pod of the chart looks like.
     Takes {root, pod (its values over podDefaults), group (its name; headgroup for the head)}. */}}
{{- define "kubealign.rayPod" -}}
{{- $values := .root.Values -}}
{{- $pod := .pod -}}
{{- $head := eq .group "headgroup" -}}
metadata:
  labels:
    {{- include "kubealign.podLabels" "ray" | nindent 4 }}
spec:
  serviceAccountName: kubealign-ray
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "kubealign.plain" $pod.terminationGracePeriodSeconds }}
  securityContext:
    {{- include "kubealign.podSecurity" . | nindent 4 }}
  {{- with include "kubealign.pullSecrets" .root }}{{ . | trim | nindent 2 }}{{ end }}
  {{- with $pod.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if or $pod.tolerations $pod.gpus }}
  tolerations:
    {{- if $pod.gpus }}
    - {key: {{ $pod.gpuResource }}, operator: Exists, effect: NoSchedule}
    {{- end }}
    {{- with $pod.tolerations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  {{- if and $pod.spread (not $head) }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {ray.io/cluster: kubealign, ray.io/group: {{ .group }}}
  {{- end }}
  containers:
    - name: {{ ternary "ray-head" "ray-worker" $head }}
      image: {{ $values.images.train }}
      imagePullPolicy: {{ $values.images.pullPolicy }}
      securityContext:
        {{- include "kubealign.containerSecurity" . | nindent 8 }}
      terminationMessagePolicy: FallbackToLogsOnError
      ports:
        {{- if $head }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        {{- end }}
        - {name: metrics, containerPort: 8080}
      # As KubeRay's own, with more patience: a busy pod answers late.
      readinessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        initialDelaySeconds: 5
        periodSeconds: 5
        timeoutSeconds: 10
        failureThreshold: 10
      livenessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        initialDelaySeconds: 30
        periodSeconds: 5
        timeoutSeconds: 10
        failureThreshold: 60
      resources:
        requests:
          cpu: {{ include "kubealign.plain" ($pod.cpuRequest | default $pod.cpu) | quote }}
          {{- include "kubealign.rayResources" $pod | nindent 10 }}
        limits:
          cpu: {{ include "kubealign.plain" $pod.cpu | quote }}
          {{- include "kubealign.rayResources" $pod | nindent 10 }}
      env:
        - {name: HOME, value: /home/kubealign}
        - {name: KUBEALIGN_CACHE, value: /cache}
        - {name: HF_HOME, value: /cache/huggingface}
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
        {{- if $head }}
        # Ray gives one thread to a process that was given no whole CPU, and drivers of jobs are such processes.
        - {name: OMP_NUM_THREADS, value: {{ include "kubealign.number" $pod.cpu | float64 | floor | max 1 | int | quote }}}
        {{- end }}
        {{- range $name, $value := $pod.env }}
        - {name: {{ $name }}, value: {{ include "kubealign.plain" $value | quote }}}
        {{- end }}
      {{- $secrets := include "kubealign.storageSecret" .root }}
      {{- if or $secrets $pod.envFrom }}
      envFrom:
        {{- with $secrets }}{{ . | trim | nindent 8 }}{{ end }}
        {{- range $pod.envFrom }}
        - secretRef: {name: {{ . }}}
        {{- end }}
      {{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/kubealign}
        - {name: shm, mountPath: /dev/shm}
        - {name: cache, mountPath: /cache}
        {{- with include "kubealign.storageMount" .root }}{{ . | trim | nindent 8 }}{{ end }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: {{ include "kubealign.plain" $pod.scratch }}}
    - name: home
      emptyDir: {sizeLimit: {{ include "kubealign.plain" $pod.scratch }}}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ include "kubealign.plain" $pod.shm }}}
    - name: cache
      {{- if $values.cache.enabled }}
      persistentVolumeClaim: {claimName: {{ $values.cache.existingClaim | default "kubealign-cache" }}}
      {{- else }}
      emptyDir: {sizeLimit: {{ include "kubealign.plain" $pod.scratch }}}
      {{- end }}
    {{- with include "kubealign.storageVolume" .root }}{{ . | trim | nindent 4 }}{{ end }}
{{- end }}

{{/* Everything but the CPU, where request and limit are one. Takes a pod's values. */}}
{{- define "kubealign.rayResources" -}}
memory: {{ include "kubealign.plain" .memory }}
ephemeral-storage: {{ include "kubealign.plain" .scratch }}
{{- if .gpus }}
{{ .gpuResource }}: {{ include "kubealign.plain" .gpus | quote }}
{{- end }}
{{- range $name, $count := .extraResources }}
{{ $name }}: {{ include "kubealign.plain" $count | quote }}
{{- end }}
{{- end }}

{{/* Parameters of `ray start`: half of /dev/shm for the object store, the other half for NCCL, gloo and torch.
     Takes {pod, cpus (empty: those of the container)}. */}}
{{- define "kubealign.rayStart" -}}
object-store-memory: {{ divf (include "kubealign.number" .pod.shm) 2 | int64 | quote }}
{{- with .cpus }}
num-cpus: {{ include "kubealign.plain" . | quote }}
{{- end }}
{{- end }}

{{/* A value as it was written: Helm reads every number as a float64 and would print 8388608 as 8.388608e+06. */}}
{{- define "kubealign.plain" -}}
{{- if kindIs "float64" . -}}
{{- if eq . (floor .) }}{{ int64 . }}{{ else }}{{ toJson . }}{{ end -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end }}

{{/* A quantity as a plain number: 500m -> 0.5, 1Gi -> 1073741824. */}}
{{- define "kubealign.number" -}}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- if kindIs "string" . -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (index $units (regexFind "[A-Za-z]*$" .)) | printf "%f" -}}
{{- else -}}
{{- printf "%f" (float64 .) -}}
{{- end -}}
{{- end }}
