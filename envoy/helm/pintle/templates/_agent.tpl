{{- /* What the agent's container is in every mode, below its name. */ -}}
{{- define "pintle.agent" }}
        image: {{ .Values.image }}
        imagePullPolicy: {{ .Values.imagePullPolicy }}
        args: [run, --config, /etc/pintle/agent.yaml]
        env:
        # The name by which the fleet knows it.
        - name: PINTLE_AGENT_ID
          valueFrom: {fieldRef: {fieldPath: {{ if eq .Values.mode "node" }}spec.nodeName{{ else }}metadata.name{{ end }}}}
        # For commands: kubectl exec POD -c agent -- pintle check --no-envoy
        - {name: PINTLE_CONFIG, value: /etc/pintle/agent.yaml}
        ports:
        - {name: admin, containerPort: 19100}
{{- if eq .Values.mode "service" }}
        - {name: proxies, containerPort: 19101}
{{- end }}
{{- if eq .Values.mode "sidecar" }}
        # Envoy starts after it, and goes on without it: no readiness of the pod hangs on the agent.
        startupProbe: {httpGet: {path: /healthz, port: admin}, periodSeconds: 1, failureThreshold: 60}
{{- else }}
        readinessProbe: {httpGet: {path: /readyz, port: admin}, periodSeconds: 5}
{{- end }}
        livenessProbe: {httpGet: {path: /healthz, port: admin}, periodSeconds: 10, failureThreshold: 3}
        resources:
          {{- toYaml .Values.resources | nindent 10 }}
        securityContext:
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities: {drop: [ALL]}
        volumeMounts:
        - {name: run, mountPath: {{ if eq .Values.mode "node" }}/run/pintle{{ else }}/run{{ end }}}
        - {name: state, mountPath: /var/lib/pintle}
        - {name: config, mountPath: /etc/pintle, readOnly: true}
{{- if eq .Values.mode "service" }}
        - {name: tls, mountPath: /etc/pintle-tls, readOnly: true}
{{- end }}
{{- with .Values.volumeMounts }}
        {{- toYaml . | nindent 8 }}
{{- end }}
{{- end }}
{{- /* What a pod of the agent is in every mode, but for its containers, security context and volumes. */ -}}
{{- define "pintle.pod" }}
{{- if hasKey .Values.config "kubernetes" }}
      serviceAccountName: {{ .Release.Name }}
{{- else }}
      # It talks to neither the API server nor the mesh.
      automountServiceAccountToken: false
{{- end }}
{{- if .Values.priorityClassName }}
      priorityClassName: {{ .Values.priorityClassName }}
{{- else if eq .Values.mode "node" }}
      # A node that is full still gets an agent.
      priorityClassName: system-node-critical
{{- end }}
{{- with .Values.imagePullSecrets }}
      imagePullSecrets:
      {{- toYaml . | nindent 6 }}
{{- end }}
{{- with .Values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
{{- end }}
{{- with .Values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
{{- end }}
{{- if .Values.tolerations }}
      tolerations:
      {{- toYaml .Values.tolerations | nindent 6 }}
{{- else if eq .Values.mode "node" }}
      # Nodes for special work have proxies as well.
      tolerations: [{operator: Exists}]
{{- end }}
{{- end }}
{{- /* The volumes of every mode. */ -}}
{{- define "pintle.volumes" }}
      - {name: config, configMap: {name: {{ .Release.Name }}}}
{{- with .Values.volumes }}
      {{- toYaml . | nindent 6 }}
{{- end }}
{{- end }}
