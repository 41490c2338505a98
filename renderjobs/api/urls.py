"""`/api/v1/…`"""

from __future__ import annotations

from django.urls import path

from renderjobs.api import prompts, quotas, views

urlpatterns = [
    path("jobs", views.JobsView.as_view()),
    path("jobs/estimate", views.EstimateView.as_view()),
    path("jobs/<str:job_id>", views.JobView.as_view()),
    path("jobs/<str:job_id>/images", views.JobImagesView.as_view()),
    path("jobs/<str:job_id>/events", views.JobEventsView.as_view()),
    path("jobs/<str:job_id>/approve", views.JobApproveView.as_view()),
    path("jobs/<str:job_id>/decline", views.JobDeclineView.as_view()),
    path("jobs/<str:job_id>/cancel", views.JobCancelView.as_view()),
    path("jobs/<str:job_id>/pause", views.JobPauseView.as_view()),
    path("jobs/<str:job_id>/resume", views.JobResumeView.as_view()),
    path("jobs/<str:job_id>/grid", views.JobGridView.as_view()),
    path("prompts/expand", prompts.ExpandView.as_view()),
    path("prompts/<str:expansion_id>", prompts.ExpansionView.as_view()),
    path("quotas", quotas.QuotasView.as_view()),
    path("usage.csv", views.UsageFileView.as_view()),
    path("usage", views.UsageView.as_view()),
]
